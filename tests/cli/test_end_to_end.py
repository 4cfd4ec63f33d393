"""Two real runs from the command line: train, attack, evaluate, compare; and an experiment with its report."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from bn_vuln.cli.main import main
from helpers_runs import interrupt_before

from bn_vuln import api, records

TRAIN = ["train", "--limit", "1000", "--hidden", "16", "--epochs", "1", "--lr", "0.1", "--batch-size", "50"]
ATTACK = ["--attack", "bim", "--eps", "0.3", "--step-size", "0.01", "--limit", "50"]


def test_train_attack_evaluate_and_compare_a_pair(bnvuln, tmp_path):
    folders = {"none": tmp_path / "none", "batch": tmp_path / "batch"}
    for normalization, folder in folders.items():
        code, out, err = bnvuln(*TRAIN, "--normalization", normalization, "--out", folder)
        assert code == 0
        assert "validation accuracy" in out
        assert "epoch 1/1" in err
        assert "finished already" in bnvuln(*TRAIN, "--normalization", normalization, "--out", folder)[2]
        printed = json.loads(bnvuln("attack", folder, *ATTACK, "--json", "-q")[1])["records"]
        kept = {record.perturbation_id: record.accuracy for record in records.read_records(folder)}
        assert kept == {record["perturbation_id"]: record["accuracy"] for record in printed}
    code, _, err = bnvuln(*TRAIN, "--seed", "1", "--out", folder)
    assert code == 2
    assert "another config" in err

    code, out, _ = bnvuln("evaluate", folder, "--suite", "mechanism", "--limit", "40", "--json", "-q")
    assert code == 0
    found = api.measure(folder, "mechanism", limit=40)
    assert {r["name"]: r["value"] for r in json.loads(out)["measurements"]} == pytest.approx(
        {name: record.value for name, record in found.items()}
    )

    code, out, _ = bnvuln("compare", *folders.values(), "--json")
    assert code == 0
    pairs = json.loads(out)["pairs"]
    assert len(pairs) == 2
    for row in pairs:
        correct = [records.read_correct(folder, row["perturbation_id"]) for folder in folders.values()]
        delta = correct[1].astype(float) - correct[0]
        assert row["difference"] == pytest.approx(delta.mean())
        assert row["standard_error_over_examples"] == pytest.approx(delta.std(ddof=1) / 50**0.5)
    out = bnvuln("compare", *folders.values())[1]
    assert "spread over seeds is unknown" in out
    assert "check 18" in out  # BIM's steps cannot reach the border of the eps ball


def test_an_interrupted_training_goes_on_where_it_was(bnvuln, tmp_path, monkeypatch):
    options = [*TRAIN, "--set", "train.epochs=2", "--out", tmp_path / "run"]
    interrupt_before(monkeypatch, 1)
    code, _, err = bnvuln(*options)
    assert code == 130
    assert "goes on after its last checkpoint" in err
    monkeypatch.undo()
    code, out, err = bnvuln(*options, "--resume", "--json", "--tensorboard")
    assert code == 0
    assert "going on after epoch 1 of 2" in err
    assert json.loads(out)["resumed"] == 1
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    before = (tmp_path / "run" / "training.json").read_text()
    assert bnvuln(*options, "--force")[0] == 0
    assert (tmp_path / "run" / "training.json").read_text() != before


def test_a_failed_training_is_a_result(bnvuln, tmp_path):
    code, out, _ = bnvuln(*TRAIN, "--set", "train.lr=1e30", "--out", tmp_path / "run")
    assert code == 0
    assert "failed to train" in out


# ---------------------------------------------------------------- an experiment


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """table6 at smoke, from the command line: its results folder."""
    root = tmp_path_factory.mktemp("reproduced")
    with pytest.raises(SystemExit) as exit_:
        main(["reproduce", "table6", "--scale", "smoke", "--out", str(root), "-q"])
    assert exit_.value.code == 0
    return root


def test_reproduce_prints_the_table_beside_the_paper_and_names_its_report(bnvuln, reproduced):
    code, out, err = bnvuln("reproduce", "table6", "--scale", "smoke", "--out", reproduced)
    assert code == 0
    assert "batch \N{MINUS SIGN} none" in out
    assert "\N{MINUS SIGN}43.80 ± 0.50" in out
    assert "preview" in out
    assert "table6 at scale smoke: every cell is finished" in err
    assert f"report: {reproduced}/report/table6-smoke.html\nrecords: {reproduced}\nnext: bnvuln report" in err
    assert (reproduced / "report" / "table6-smoke.html").exists()
    assert "smoke 2/2 cells" in bnvuln("reproduce", "--list", "--out", reproduced)[1]
    printed = json.loads(bnvuln("reproduce", "table6", "--scale", "smoke", "--out", reproduced, "--json", "-q")[1])
    assert printed["experiment"] == "table6"
    assert {c["verdict"] for c in printed["comparisons"]} == {"preview", "context"}
    assert all(row["n"] == 1 and row["sem"] is None for row in printed["rows"])


@pytest.mark.slow
def test_check_exits_1_only_for_a_failing_verdict(bnvuln, reproduced, monkeypatch):
    command = ["reproduce", "table6", "--scale", "smoke", "--out", reproduced, "-q"]
    monkeypatch.setattr("bn_vuln.reporting.claims.judge", lambda *_: "undecided")
    assert bnvuln(*command, "--check")[0] == 0
    monkeypatch.setattr("bn_vuln.reporting.claims.judge", lambda *_: "fails")
    assert bnvuln(*command)[0] == 0
    assert bnvuln(*command, "--check")[0] == 1


def test_report_writes_from_records_without_tensorflow(bnvuln, reproduced):
    code = (
        "import sys\nfrom bn_vuln.cli.main import main\n"
        f"try: main(['report', {str(reproduced)!r}, '--format', 'csv'])\n"
        "except SystemExit as e: assert not e.code\nassert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(".csv")
    for form in ("html", "md"):
        assert bnvuln("report", reproduced, "--format", form)[1].strip().endswith(f".{form}")
    printed = json.loads(bnvuln("report", reproduced, "--json")[1])
    assert [e["experiment"] for e in printed["experiments"]] == ["table6"]


def test_folders_without_experiments_are_refused(bnvuln, tmp_path):
    code, _, err = bnvuln("report", tmp_path)
    assert code == 2
    assert "no experiment here" in err
    for name in ("b", "a"):
        (tmp_path / name / "experiments").mkdir(parents=True)
        (tmp_path / name / "experiments" / "table6-full.yaml").write_text("")
    code, out, err = bnvuln("report", tmp_path)
    assert (code, out) == (2, "")
    assert f"no experiment here, but in {tmp_path}/a, {tmp_path}/b: bnvuln report {tmp_path}/a" in err


def test_compare_needs_common_records(bnvuln, runs, tmp_path):
    assert bnvuln("compare", runs["none"], tmp_path / "nothing")[0] == 2

"""`bnvuln audit`: what its options ask for, what it prints and exits with, and how mistakes end."""

import json
from pathlib import Path

import helpers_findings as made
import pytest

from bn_vuln.auditing.findings import Findings, Requirement
from bn_vuln.reporting.audit_result import AuditResult

FINDINGS = made.nothing_helps()


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of `api.audit`, which measures nothing."""
    found = []

    def audit(model, **options):
        found.append((str(model), options))
        conditions = [Requirement(text=text, value=0.5, met="clean" in text) for text in options["require"]]
        return AuditResult(FINDINGS.model_copy(update={"requirements": tuple(conditions)}), options["out"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bn_vuln.api.audit", audit)
    return found


def test_options_are_handed_on(bnvuln, calls):
    options = ["--limit", "50", "--ord", "2", "--max-clean-cost", "1/2", "--time", "90s", "--data", "folder:x y"]
    options += [
        "--input-scale",
        "0-1",
        "--no-exif",
        "--require",
        "clean >= .4",
        "--require",
        "clean > 1/3",
        "--out",
        "o",
    ]
    assert bnvuln("audit", "a.keras", "b.keras", *options)[0] == 0
    ((model, given),) = calls
    assert (model, str(given["second"]), given["out"]) == ("a.keras", "b.keras", Path("o"))
    assert (given["limit"], given["ord"], given["max_clean_cost"], given["time"]) == (50, "2", 0.5, 90)
    assert given["require"] == ("clean >= .4", "clean > 1/3")
    assert (given["dataset"], given["input_scale"], given["exif"], given.get("thorough")) == (
        "folder:x y",
        "0-1",
        False,
        None,
    )
    assert given["command"].startswith("bnvuln")  # then the arguments of the process, of which a worker has none


@pytest.mark.parametrize(
    ("options", "time"),
    [
        ([], "10m"),
        (["--thorough"], None),
        (["--set", "thorough=true"], None),
        (["--thorough", "--time", "1h"], 3600),
        (["--time", "none"], "none"),
    ],
)
def test_ten_minutes_are_the_default_but_of_thorough(bnvuln, calls, options, time):
    assert bnvuln("audit", "model.keras", *options)[0] == 0
    assert calls[0][1].get("time") == time


@pytest.mark.parametrize(
    ("models", "folder"),
    [
        (["path/to/model.keras"], "audits/model"),
        (["runs/table6.bn"], "audits/table6.bn"),
        (["a.keras", "b.h5"], "audits/a-b"),
        (["keras.applications:MobileNetV2"], "audits/MobileNetV2"),
    ],
)
def test_the_folder_has_the_name_of_the_model(bnvuln, calls, models, folder):
    bnvuln("audit", *models)
    assert calls[0][1]["out"] == Path(folder)


def test_the_answer_is_printed_and_where_the_page_is(bnvuln, calls):
    code, out, err = bnvuln("audit", "model.keras", "--require", "clean >= .4")
    assert code == 0
    assert out.startswith(FINDINGS.models[0].source)
    assert "met: clean >= .4" in out
    assert err == "page: audits/model/index.html\n"
    assert bnvuln("audit", "model.keras", "-q")[2] == ""


def test_json_is_one_object(bnvuln, calls):
    code, out, err = bnvuln("audit", "model.keras", "--json", "-q")
    assert (code, err) == (0, "")
    assert Findings.model_validate(json.loads(out)) == FINDINGS


def test_a_condition_that_is_not_met_is_exit_code_1(bnvuln, calls):
    code, out, _ = bnvuln("audit", "model.keras", "--require", "strong 2/255 >= .6", "--require", "clean > 0")
    assert code == 1
    assert "NOT met: strong 2/255 >= .6 (50.0%)\nmet: clean > 0" in out
    assert json.loads(bnvuln("audit", "model.keras", "--require", "strong 2/255 >= .6", "--json", "-q")[1])


def test_ctrl_c_is_exit_code_130(bnvuln, calls, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bn_vuln.api.audit", interrupted)
    code, out, err = bnvuln("audit", "model.keras")
    assert (code, out) == (130, "")
    assert "Interrupted. What was finished is kept; run the same command again to go on" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "model.keras: no such file"),
        (["--time", "soon"], "'--time': expected 90s, 10m, 1h or none, received 'soon'"),
        (["--time", "0s"], "'--time': expected greater than 0"),
        (["--require", "clean"], "--require 'clean': expected such as 'strong 2/255 >= .4'"),
        (["--max-clean-cost", "-1"], "'--max-clean-cost': expected greater than or equal to 0"),
        (["--limit", "19"], "'--limit': expected greater than or equal to 20, received '19'"),
        (["--no-exif"], "exif and skip_bad are for image files: --data folder:PATH"),
        (["--out", "file.txt"], "'file.txt' is a file"),
        (["--ord", "1"], "'--ord': expected inf|2, received '1'"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_loaded(bnvuln, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    Path("file.txt").touch()
    code, out, err = bnvuln("audit", "model.keras", *options)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]

"""The Python API: lazy and quick, configs as plain dicts, suites as mappings, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bn_vuln as bnv
from bn_vuln import api, records
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.runtime import lease

FUNCTIONS = {name for name in bnv.__all__ if name[0].islower()}

# Imports every module, then calls each function with what it must refuse: the function itself has to answer.
CODE = """
import importlib, pkgutil
import bn_vuln as bnv
import bn_vuln.cli

for package in (bnv, bnv.cli):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
calls = {
    "attack": (["x.h5", {"eps": 0.1}], {}),
    "audit": (["x.h5"], {}),
    "compare": (["nowhere", "nowhere"], {}),
    "evaluate": (["x.h5", "no such suite"], {}),
    "measure": (["x.h5", "no such suite"], {}),
    "mend": (["x.h5"], {"mend": {"reestimate": True}, "out": "y.keras"}),
    "open_classifier": (["x.h5"], {}),
    "pretrained": (["no such net"], {}),
    "publish": ([["no such experiment"], "nowhere"], {}),
    "report": (["nowhere"], {}),
    "reproduce": (["no such experiment"], {}),
    "train": ([{"arch": "no such architecture"}], {}),
    "transfer": ([["x.h5", "y.h5"], {"eps": 0.1}], {}),
    "unpack": (["nowhere", "nowhere"], {}),
    "verify": (["nowhere"], {}),
}
for name in sorted(set(bnv.__all__) - {"__version__", "BnvulnError", "ConfigError", "UsageError"}):
    arguments, options = calls[name]
    try:
        getattr(bnv, name)(*arguments, **options)
    except bnv.BnvulnError as error:
        print(name, type(error).__name__)
"""


def run(code: str, folder: Path) -> str:
    """The output of Python code, which must print nothing on standard error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_no_module_replaces_a_function(tmp_path: Path) -> None:
    answers = dict(line.split() for line in run(CODE, tmp_path).splitlines())
    assert answers.keys() == FUNCTIONS
    assert set(answers.values()) <= {"BnvulnError", "ConfigError", "UsageError"}
    assert answers["train"] == "ConfigError"


def test_the_functions_are_those_of_the_api_and_listed() -> None:
    assert set(bnv.__all__) <= set(dir(bnv))
    for name in FUNCTIONS:
        assert getattr(bnv, name) is getattr(api, name)
    assert not hasattr(bnv, "no_such_function")


def test_the_import_is_lazy(tmp_path: Path) -> None:
    heavy = "{'tensorflow', 'keras', 'pydantic', 'scipy'}"
    assert run(f"import sys, bn_vuln; print({heavy} & set(sys.modules))", tmp_path) == "set()\n"
    functions = "bn_vuln.train, bn_vuln.report"
    assert run(f"import sys, bn_vuln; {functions}; print('tensorflow' in sys.modules)", tmp_path) == "False\n"


@pytest.fixture
def pair(runs, tmp_path):
    """Copies of the trained pair, to write into."""
    return {name: shutil.copytree(folder, tmp_path / name) for name, folder in runs.items()}


@pytest.mark.slow
def test_it_trains_attacks_and_evaluates_from_plain_dicts(tmp_path):
    plain = {
        "data": {"limit": 1000},
        "arch": {"name": "mlp", "hidden": [16]},
        "normalization": "batch",
        "train": {"epochs": 1, "batch_size": 50, "lr": "1/10"},
    }
    trained = api.train(plain, tmp_path / "run")
    assert trained.record.state == "trained"
    assert api.newest_run(tmp_path) == tmp_path / "run"
    attacked = api.attack(tmp_path / "run", {"attack": "fgsm", "eps": "8/255"}, limit=20)
    clean, robust = attacked.clean.record.accuracy, attacked.record.accuracy
    assert repr(attacked).startswith(f"AttackResult(clean {clean:.4f}, fgsm {robust:.4f} of 20, flags: ")
    assert repr(attacked.clean).startswith(f"Result(clean: accuracy {clean:.4f} of 20, flags: ")
    assert attacked.record.n == 20
    measured = api.evaluate(tmp_path / "run", "quick", limit=20)
    assert measured["fgsm_inf"].accuracy == attacked.record.accuracy


def test_measurements_and_perturbations_may_be_mappings(pair, tmp_path):
    folder = shutil.copytree(pair["batch"], tmp_path / "kept")
    found = api.measure(folder, {"angle": {"kind": "tilt"}}, limit=20, split="validation", root=tmp_path)
    assert found["angle"].unit == "deg"
    assert found["angle"].measurement["split"] == "validation"
    assert records.read_measurement(records.measurement_path(folder, found["angle"].measurement_id)) == found["angle"]
    noisy = api.evaluate(folder, {"noise": {"kind": "awgn", "std": "1/10"}}, limit=20, root=tmp_path)
    assert records.read_records(folder) == [noisy["noise"]]
    assert api.measure(pair["batch"], "quick") == {}
    with pytest.raises(ConfigError, match=r"suite: measurements.angle: expected one of tilt, .*did you mean 'tilt'"):
        api.measure(pair["batch"], {"angle": {"kind": "tlit"}})


def test_splits_have_different_examples(runs):
    losses = {
        s: api.evaluate(runs["none"], {"clean": {"kind": "clean"}}, split=s, limit=40)["clean"].loss
        for s in ("test", "validation")
    }
    assert len({*losses.values()}) == 2


def test_what_statistics_of_the_batch_do_not_allow_is_refused_before_anything_is_measured(bnvuln, pair):
    options = ["--suite", "mechanism", "--bn-statistics", "batch", "--limit", "40"]
    before = {path for path in pair["batch"].rglob("*") if path.is_file()}
    code, out, err = bnvuln("evaluate", pair["batch"], *options)
    assert (code, out) == (2, "")
    assert "bn_statistics: batch: tilt, spectrum and fooling need per-example logits" in err
    assert {path for path in pair["batch"].rglob("*") if path.is_file()} == before


def test_an_external_model_keeps_its_records_under_its_id(bnvuln, pair, tmp_path):
    model = pair["none"] / "model.keras"
    options = ["--data", "mnist", "--attack", "fgsm", "--limit", "20", "--runs", tmp_path / "r", "-q"]
    options += ["--input-scale", "0-1"]
    assert bnvuln("attack", model, *options)[0] == 0
    (folder,) = (tmp_path / "r").iterdir()
    assert len(records.read_records(folder)) == 2
    assert api.open_classifier(model, dataset="mnist", input_scale="0-1").id == folder.name


@pytest.mark.parametrize(
    ("option", "now"),
    [("folder", "root"), ("from_probabilities", "output='softmax'"), ("evaluation", "dataset, split, limit")],
)
def test_options_of_earlier_versions_are_named_by_what_they_are_now(option, now):
    with pytest.raises(UsageError, match=f"{option} is now .*{now}"):
        bnv.evaluate("model.keras", dataset="mnist", **{option: True})


def test_runs_without_common_records_are_not_compared(pair):
    fgsm = {"kind": "attack", "attack": "fgsm", "eps": 0.1}
    with pytest.raises(UsageError, match="no records here; measure it first"):
        api.compare(pair["none"], pair["batch"])
    for name, limit in (("none", 20), ("batch", 30)):
        api.evaluate(pair[name], {"fgsm": fgsm}, limit=limit, root=pair[name])
    with pytest.raises(BnvulnError, match="share no perturbation"):
        api.compare(pair["none"], pair["batch"])


@pytest.mark.parametrize("target", ["nothing", "nothing.h5"])
def test_a_target_that_is_neither_run_nor_model_is_refused(target):
    with pytest.raises(UsageError, match="no such file"):
        api.open_classifier(target)


def test_the_lease_of_a_process_that_was_killed_as_its_training_was_finished_is_removed(runs, tmp_path):
    folder = shutil.copytree(runs["none"], tmp_path / "run")
    dead = {"host": "elsewhere", "machine": lease._machine(), "pid": os.getpid(), "started": 1}
    (folder / lease.LOCK).write_text(json.dumps(dead))
    assert api.train(records.read_cell(folder), folder).record.state == "trained"
    assert not (folder / lease.LOCK).exists()

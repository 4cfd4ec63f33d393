"""`bnvuln reproduce` and `bnvuln scale-input`: what they ask of the api, and what they say before."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from helpers_records import SMALL

from bn_vuln.config.grid import expand
from bn_vuln.errors import BnvulnError
from bn_vuln.experiments import catalog, cost_estimate

WIDTH = ["scale-input", "--width"]


@pytest.fixture
def reproduced(monkeypatch):
    """The calls of `api.reproduce`, which then stops the command."""
    calls = []

    def reproduce(name, **options):
        calls.append((name, options))
        raise BnvulnError("stopped")

    monkeypatch.setattr("bn_vuln.api.reproduce", reproduce)
    monkeypatch.setattr(cost_estimate, "flops_per_second", lambda: 1e9)
    return calls


def asked(calls):
    """The one call, without its progress."""
    ((name, options),) = calls
    return name, {key: value for key, value in options.items() if key != "progress"}


def test_reproduce_asks_for_one_experiment(bnvuln, reproduced, tmp_path):
    options = ["--scale", "quick", "--set", "seeds=[1]", "--out", tmp_path, "--jobs", "2", "--strategy", "none"]
    code, out, err = bnvuln("reproduce", "table6", *options)
    assert (code, out) == (1, "")
    cost = catalog.experiment("table6", "quick").cost["quick"]
    assert err.startswith(f"table6 at scale quick: the whole of it takes about {cost} on two cores with --jobs 2\n")
    assert asked(reproduced) == (
        "table6",
        {
            "scale": "quick", "root": tmp_path, "jobs": 2, "strategy": "none", "overrides": ("seeds=[1]",),
            "where": {}, "seeds": None,
        },
    )  # fmt: skip


def test_a_shard_has_its_cells_alone(bnvuln, reproduced, tmp_path):
    assert "8 cells:" in bnvuln("reproduce", "table6", "--shard", "2/4", "--dry-run")[1]
    err = bnvuln("reproduce", "table6", "--shard", "2/4", "--out", tmp_path)[2]
    assert err.startswith("table6 at scale full: 8 of 30 cells\n")
    assert asked(reproduced)[1]["shard"] == "2/4"
    code, out, err = bnvuln("reproduce", "table6", "--shard", "31/40", "--out", tmp_path)
    assert (code, out) == (2, "")
    assert "--shard 31/40: none of the 30 cells is in it" in err


def test_quiet_says_nothing_before_the_table(bnvuln, reproduced, tmp_path):
    assert bnvuln("reproduce", "table6", "--out", tmp_path, "-q")[2] == "Error: stopped\n"


@pytest.mark.parametrize(
    ("words", "where", "seeds", "cells"),
    [
        (["--where", "normalization.name=batch", "--seeds", "0-2"], {"normalization.name": ["batch"]}, (0, 1, 2), 9),
        (["--where", "data.width=28,56"], {"data.width": [28, 56]}, None, 20),
        (["--where", "data.width=[28, 56]", "--seeds", "0,3-4"], {"data.width": [28, 56]}, (0, 3, 4), 12),
        (["--where", "normalization.c=1e-5,null", "--seeds", "4"], {"normalization.c": ["1e-5", None]}, (4,), 6),
    ],
)
def test_a_part_is_what_where_and_seeds_say(bnvuln, reproduced, tmp_path, words, where, seeds, cells):
    assert f"{cells} cells:" in bnvuln("reproduce", "table6", *words, "--dry-run")[1]
    err = bnvuln("reproduce", "table6", *words, "--out", tmp_path)[2]
    assert err.startswith(f"table6 at scale full: {cells} of 30 cells\n")
    _, how = asked(reproduced)
    assert (how["where"], how["seeds"], how["overrides"]) == (where, seeds, ())


def test_without_a_known_cost_the_cells_are_counted(bnvuln, reproduced, monkeypatch, tmp_path):
    chosen = catalog.experiment("table6", "quick").model_copy(update={"cost": {}})
    monkeypatch.setattr(catalog, "experiment", lambda *_: chosen)
    assert "table6 at scale quick: 6 cells" in bnvuln("reproduce", "table6", "--out", tmp_path)[2]


@pytest.mark.parametrize(
    ("options", "overrides", "name"),
    [
        (["56"], ("grid.data.width=[56]",), "scale_input"),
        (["56", "--weight-decay", "0"], ("grid.data.width=[56]",), "scale_input"),
        (
            ["28", "--weight-decay", "1/100", "--set", "train.epochs=2"],
            ("grid.data.width=[28]", "weight_decay=0.01", "train.epochs=2"),
            "scale_input_l2",
        ),
    ],
)
def test_scale_input_says_how_long_and_asks_for_one_experiment(bnvuln, reproduced, tmp_path, options, overrides, name):
    code, _, err = bnvuln(*WIDTH, *options, "--out", tmp_path)
    assert code == 1
    assert f"{name} at scale quick: 2 of 2 trainings and evaluations to do, about" in err
    found, how = asked(reproduced)
    assert (found, how["overrides"], how["scale"]) == (name, overrides, "quick")


def test_an_estimate_runs_nothing(bnvuln, reproduced, tmp_path):
    code, out, err = bnvuln(*WIDTH, "56", "--estimate", "--json", "--out", tmp_path / "runs")
    assert code == 0
    assert json.loads(out)["seconds"] > 0
    assert "about" in err
    assert bnvuln(*WIDTH, "56", "--estimate", "--out", tmp_path / "runs")[1] == ""
    assert (reproduced, (tmp_path / "runs").exists()) == ([], False)


def test_the_pair_of_scale_input_is_that_of_table6_at_the_width():
    ours, paper = (
        expand(catalog.experiment(name, "full", ["grid.data.width=[84]"])) for name in ("scale_input", "table6")
    )
    assert ours == paper
    quick = catalog.experiment("scale_input", "quick", ["grid.data.width=[84]"])
    assert {(cell.data.limit, cell.seed) for cell in expand(quick)} == {(10000, 0)}
    assert quick.evaluation.limit == 500
    cells = expand(catalog.experiment("scale_input_l2", "quick", ["grid.data.width=[28]", "weight_decay=0.05"]))
    assert {(cell.normalization.name, cell.weight_decay) for cell in cells} == {("none", 0.05), ("batch", 0.05)}


@pytest.mark.parametrize("command", [["reproduce", "table6", "--set", "seeds=[0]"], [*WIDTH, "30"]], ids=" ".join)
def test_a_dry_run_prints_the_cells_and_makes_nothing(bnvuln, reproduced, tmp_path, command):
    n = 6 if command[0] == "reproduce" else 2
    code, out, _ = bnvuln(*command, "--dry-run", "--out", tmp_path / "runs")
    assert code == 0
    assert f"{n} cells:" in out
    printed = json.loads(bnvuln(*command, "--dry-run", "--json")[1])
    assert len({cell["id"] for cell in printed["cells"]}) == n
    assert (reproduced, (tmp_path / "runs").exists()) == ([], False)


def test_the_list_has_claim_cost_and_state(bnvuln, tmp_path):
    out = bnvuln("reproduce", "--list", "--out", tmp_path)[1]
    assert [name for kind in ("paper", "beyond") for name in catalog.names(kind) if name not in out] == []
    assert "smoke 0/2 cells" in out
    rows = json.loads(bnvuln("reproduce", "--list", "--json", "--out", tmp_path)[1])["experiments"]
    assert all(row["claim"] and row["command"] and row["cost"] for row in rows)
    assert "  command: bnvuln reproduce table6 --scale quick --jobs 2\n" in out


MISTAKES = [
    (["reproduce", "tabel6"], ["did you mean 'table6'"]),
    (["reproduce", "scale_input"], ["use bnvuln scale-input"]),
    (["reproduce", "nowhere.yaml"], ["nowhere.yaml: no such file"]),
    (["reproduce"], ["--list"]),
    (["reproduce", "table1", "--scale", "cpu"], ["'cpu'", "smoke"]),
    (["reproduce", "table6", "--set", "perturbations.bim.eps=-1"], ["perturbations.bim.eps", "-1"]),
    (["reproduce", "table6", "--set", "grid.data.width=[0]"], ["data.width", "0"]),
    (["reproduce", "table6", "--jobs", "0"], ["--jobs"]),
    (["reproduce", "table6", "--where", "arch.name=vgg8"], ["no cell has arch.name vgg8", "mlp"]),
    (["reproduce", "table6", "--where", "data.width"], ["--where data.width: expected key=value"]),
    (["reproduce", "table6", "--where", "data.width=28", "--where", "data.width=56"], ["is there twice"]),
    (["reproduce", "table6", "--seeds", "0-9"], ["no cell has seed 5 (there are: 0, 1, 2, 3, 4)"]),
    (["reproduce", "table6", "--seeds", "2-0"], ["--seeds: expected seeds such as 0, 0-2 or 0,2, received '2-0'"]),
    (["reproduce", "table6", "--seeds", "a"], ["expected seeds such as 0, 0-2 or 0,2, received 'a'"]),
    (["scale-input"], ["--width"]),
    ([*WIDTH, "wide"], ["--width", "'wide'"]),
    ([*WIDTH, "27", "--estimate"], ["data.width", ">= 28", "27"]),
    ([*WIDTH, "10", "--dry-run"], ["data.width", ">= 28", "10"]),
    ([*WIDTH, "28", "--weight-decay", "-1"], ["--weight-decay", "greater than or equal to 0"]),
    ([*WIDTH, "28", "--scale", "cpu"], ["'cpu'", "quick"]),
]


def test_mistakes_exit_2_with_one_clear_message(bnvuln, reproduced, tmp_path):
    for words, fragments in MISTAKES:
        code, out, err = bnvuln(*words, "--out", tmp_path / "runs")
        assert (code, out) == (2, ""), words
        assert "Traceback" not in err
        assert [fragment for fragment in fragments if fragment not in err] == [], err
        assert "scale_input" not in err.partition("(known:")[2]
    assert (reproduced, (tmp_path / "runs").exists()) == ([], False)


def test_a_net_that_does_not_fit_into_memory_is_said_before_it_is_made(bnvuln, reproduced, tmp_path):
    code, out, err = bnvuln(*WIDTH, "100000", "--out", tmp_path / "runs", "--estimate")
    assert (code, out) == (1, "")
    assert "GiB for its weights" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("where", ["base.data.name", "evaluation.dataset"])
def test_a_dry_run_refuses_unknown_data_as_the_run_does(bnvuln, tmp_path, where):
    content = copy.deepcopy(SMALL)
    head, name = where.split(".", 1)
    content[head] = {"data": {"name": "mnits"}} if head == "base" else {name: "mnits"}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    for words in (["--dry-run"], []):
        code, out, err = bnvuln("reproduce", path, *words, "--out", tmp_path / "runs")
        assert (code, out) == (2, "")
        assert "data set 'mnits' is not known" in err
        assert "did you mean 'mnist'?" in err

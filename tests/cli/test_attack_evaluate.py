"""`bnvuln attack` and `bnvuln evaluate`: the configs that their options make, and what they ask of the api."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_attacks import keras

from bn_vuln import records
from bn_vuln.config import (
    Attack,
    Clean,
    Evaluation,
    ExternalModel,
    MinimumNorm,
    digest,
    identity_of,
    perturbation_identity,
    with_eps_grid,
)
from bn_vuln.data.mnist import INFO as MNIST
from bn_vuln.evaluation import opening
from bn_vuln.evaluation.result import Result
from bn_vuln.experiments import catalog

RECORDED = {
    "cell_id": "id", "cell": {}, "n": 2, "correct": 1, "accuracy": 0.5, "versions": {}, "device": "cpu", "seconds": 1.0
}  # fmt: skip
FLAG = records.Flag(check=18, name="border", value=0.0, message="the steps do not reach the border of the eps ball")


class Classifier:
    """A classifier of which only the id, the data and BN are asked for."""

    id = "classifier"
    info = MNIST
    model = None
    external = True


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The calls of `opening.open_target`; the command runs in a folder that has a run."""
    calls = []

    def open_target(target, request, distribution, progress=None):
        calls.append((str(target), request))
        fields = {name: getattr(request, name) for name in ("dataset", "limit", "bn_statistics")}
        folder = Path(target) if Path(target).is_dir() else request.root / "classifier"
        return opening.Opened(Classifier(), Evaluation(split=request.split or "test", **fields), folder)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "training.json", "model.keras"):
        (tmp_path / "run" / name).write_text("")
    keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]).save("model.keras")
    monkeypatch.setattr("bn_vuln.evaluation.opening.open_target", open_target)
    return calls


@pytest.fixture
def measured(monkeypatch, opened):
    """The calls of `evaluator.measure`, which yields made-up results."""
    calls = []

    def measure(classifier, perturbations, evaluation, **options):
        calls.append((perturbations, evaluation, options))
        for name, perturbation in with_eps_grid(perturbations).items():
            identity = perturbation_identity(evaluation, "mnist", perturbation)
            flags = (FLAG,) if name != "clean" else ()
            record = records.Record(**RECORDED, perturbation_id=digest(identity), perturbation=identity, flags=flags)
            images = np.full((2, 28, 28, 1), 0.5 if name == "clean" else 0.6, np.float32)
            min_eps = None if name in ("clean", "bim") else np.array([0.1, np.inf])
            yield name, Result(record, np.array([True, False]), images, np.array([3, 7], np.int32), min_eps)

    monkeypatch.setattr("bn_vuln.evaluation.evaluator.measure", measure)
    return calls


def test_attack_options_reach_the_config(bnvuln, measured, tmp_path):
    for options, attack in (
        ([], Attack(eps=8 / 255)),
        (
            ["--ord", "2", "--eps", "1/2", "--unit", "standardized", "--box", "none", "--steps", "2", "--step-size",
             "0.2", "--restarts", "2", "--target", "next", "--keep", "best_loss", "--seed", "3"],
            Attack(ord="2", eps=0.5, unit="standardized", box="none", steps=2, step_size=0.2, restarts=2,
                   target="next", keep="best_loss", seed=3),
        ),
        (["--attack", "bim", "--backend", "cleverhans"], Attack(attack="bim", eps=8 / 255, backend="cleverhans")),
        (["--no-random-start"], Attack(eps=8 / 255, random_start=False)),
        (["--attack", "strong", "--targets", "3", "--queries", "9"],
         Attack(attack="strong", eps=8 / 255, targets=3, queries=9)),
        (["--set", "keep=last", "--set", "steps=3", "--steps", "2"], Attack(eps=8 / 255, keep="last", steps=3)),
        # The grid may name --eps itself, and come in any order.
        (["--eps", "0.2", "--eps-grid", "0.2,0.1,0.05"], Attack(eps=0.2, eps_grid=(0.05, 0.1))),
        (["--attack", "apgd-ce", "--min-eps-tolerance", "1/255"],
         Attack(attack="apgd-ce", eps=8 / 255, min_eps_tolerance=1 / 255)),
        (["--attack", "carlini_wagner", "--confidence", "1", "--initial-const", "0.1", "--steps", "5", "--unit",
          "standardized"],
         MinimumNorm(confidence=1, initial_const=0.1, steps=5, unit="standardized")),
    ):  # fmt: skip
        code, _, err = bnvuln("attack", "run", *options, "-q")
        assert (code, err) == (0, "")
        perturbations, evaluation, _ = measured.pop()
        name = options[1] if options[:1] == ["--attack"] else "pgd"
        assert perturbations == {"clean": Clean(), name: attack}
        assert evaluation == Evaluation()


def test_attack_asks_for_one_evaluation(bnvuln, opened, measured, tmp_path):
    options = ["--data", "mnist", "--split", "validation", "--limit", "20", "--checks", "none"]
    options += ["--batch-size", "7", "--input-scale", "0-255", "--from-probabilities", "--runs", "kept"]
    code, out, _ = bnvuln("attack", "model.keras", *options, "--json", "-q")
    assert code == 0
    ((target, request),) = opened
    assert target == "model.keras"
    assert (request.dataset, request.split, request.limit) == ("mnist", "validation", 20)
    assert request.external == ExternalModel(input_scale="0-255", output="softmax")
    ((_, evaluation, asked),) = measured
    assert evaluation == Evaluation(dataset="mnist", split="validation", limit=20)
    assert (str(asked["folder"]), asked["checks"], asked["batch_size"]) == ("kept/classifier", "none", 7)
    printed = json.loads(out)
    assert printed["target"] == "model.keras"
    assert [(r["name"], r["kind"], r["accuracy"], r["n"]) for r in printed["records"]] == [
        ("clean", "clean", 0.5, 2), ("pgd", "attack", 0.5, 2),
    ]  # fmt: skip
    assert printed["records"][1]["flags"][0]["check"] == 18


def test_attack_prints_a_table_with_the_flags_of_the_newest_run(bnvuln, monkeypatch, measured, tmp_path):
    (tmp_path / "run").rename(tmp_path / "newest")
    monkeypatch.setattr("bn_vuln.api.newest_run", lambda _: tmp_path / "newest")
    code, out, err = bnvuln("attack", "--attack", "bim", "--eps", "8/255", "-q")
    assert code == 0
    assert "the newest run is" in err
    assert "bim inf eps 8/255 pixel, 20 steps" in out
    assert FLAG.text in out
    assert measured[0][2]["folder"] == tmp_path / "newest"


def test_attack_saves_images_and_what_is_known_of_them(bnvuln, measured, tmp_path):
    for attack, kept in (("pgd", {"smallest_eps"}), ("bim", set())):
        path = tmp_path / "found" / f"{attack}.npz"
        assert bnvuln("attack", "run", "--attack", attack, "--save", path)[0] == 0
        with np.load(path) as saved:
            assert set(saved) == {"x", "x_adv", "y", "correct", "clean_correct"} | kept
            assert saved["x"].shape == saved["x_adv"].shape == (2, 28, 28, 1)
            assert (saved["x_adv"] > saved["x"]).all()


ATTACK_MISTAKES = [
    (["--eps", "8/0"], ["--eps", "8/0"]),
    (["--eps", "-1"], ["--eps", "-1"]),
    (["--attack", "pdg"], ["--attack", "'pdg'", "carlini_wagner", "did you mean 'pgd'"]),
    (["--box", "1"], ["--box", "expected X,X|none"]),
    (["--box", "1,0"], ["--box", "'1,0'"]),
    (["--eps", "0.2", "--eps-grid", "0.1,0.3"], ["eps_grid: expected eps of at most eps 0.2"]),
    (["--data", "cifar"], ["'cifar'"]),
    (["--save", "x.txt"], [".npz"]),
    (["--from-probabilities"], ["run is a run of this package", "leave out --output"]),
    (["--input-scale", "0-1", "--resize", "pad"], ["leave out --input-scale, --resize"]),
    (["--from-probabilities", "--output", "logits"], ["--output and --from-probabilities", "contradict"]),
    (["--confidence", "1"], ["confidence: no option of pgd"]),
    (["--attack", "carlini_wagner", "--eps", "0.1"], ["eps: no option of carlini_wagner", "known: attack, ord, unit"]),
    (["--attack", "carlini_wagner", "--ord", "inf"], ["ord: expected '2', received 'inf'"]),
    (["--attack", "carlini_wagner", "--set", "backend=cleverhans"], ["backend: expected 'own'"]),
    (["--set", "stepz=3"], ["--set stepz=3: unknown key 'stepz'", "did you mean 'steps'"]),
    (["--attack", "carlini_wagner", "--checks", "full"], ["checks: carlini_wagner has no eps ball"]),
]


def test_mistakes_in_attacks_exit_2_with_one_clear_message(bnvuln, measured, tmp_path):
    for options, fragments in ATTACK_MISTAKES:
        code, out, err = bnvuln("attack", "run", *options)
        assert (code, out) == (2, ""), options
        assert "Traceback" not in err
        assert [fragment for fragment in fragments if fragment not in err] == [], err
    assert measured == []


def test_a_target_that_is_nothing_is_refused(bnvuln, tmp_path):
    assert bnvuln("attack", tmp_path / "nothing")[0] == 2
    assert bnvuln("attack", tmp_path)[0] == 2
    code, _, err = bnvuln("attack", "--runs", tmp_path / "empty")
    assert code == 2
    assert "no finished run" in err


# ---------------------------------------------------------------- evaluate


@pytest.fixture
def evaluated(monkeypatch, opened):
    """The calls of `api.evaluate` and `api.measure`."""
    calls = {}

    def evaluate(classifier, *, suite, **options):
        calls["evaluate"] = (suite, options)
        identity = perturbation_identity(Evaluation(dataset="mnist"), "mnist", Clean())
        return {"clean": records.Record(**RECORDED, perturbation_id=digest(identity), perturbation=identity)}

    def measure(classifier, *, suite, **options):
        calls["measure"] = (suite, options)
        plain = {key: RECORDED[key] for key in ("cell_id", "cell", "n", "versions", "device", "seconds")}
        identity = {**identity_of(Evaluation(dataset="mnist")), "kind": "tilt"}
        record = records.MeasurementRecord(**plain, measurement_id="m", measurement=identity, value=60.0, unit="deg")
        return {"tilt": record} if suite == "mechanism" else {}

    monkeypatch.setattr("bn_vuln.api.evaluate", evaluate)
    monkeypatch.setattr("bn_vuln.api.measure", measure)
    monkeypatch.setattr("bn_vuln.evaluation.measurements.run.check", lambda *_: None)
    return calls


def test_evaluate_asks_for_perturbations_and_measurements_of_the_suite(bnvuln, evaluated, tmp_path):
    options = ["--suite", "mechanism", "--split", "validation", "--limit", "40", "--bn-statistics", "reestimated"]
    code, out, _ = bnvuln("evaluate", "run", *options, "--checks", "full", "--batch-size", "9", "--json", "-q")
    assert code == 0
    suite, asked = evaluated["evaluate"]
    changes = {"split": "validation", "limit": 40, "bn_statistics": "reestimated"}
    assert suite == "mechanism"
    assert {key: asked[key] for key in changes} == changes
    assert (str(asked["root"]), asked["checks"], asked["batch_size"]) == ("runs", "full", 9)
    suite, asked = evaluated["measure"]
    assert (suite, {key: asked[key] for key in changes}, str(asked["root"])) == ("mechanism", changes, "runs")
    printed = json.loads(out)
    assert [r["name"] for r in printed["records"]] == ["clean"]
    assert [(r["name"], r["value"], r["unit"]) for r in printed["measurements"]] == [("tilt", 60.0, "deg")]
    out = bnvuln("evaluate", "run", "--suite", "mechanism")[1]
    assert "50.00" in out
    assert "60" in out


def test_evaluate_takes_a_suite_in_a_file_and_the_quick_one_by_default(bnvuln, evaluated, tmp_path):
    (tmp_path / "mine.yaml").write_text("title: mine\nperturbations:\n  noise: {kind: awgn, std: 1/10}\n")
    assert bnvuln("evaluate", "model.keras", "--suite", "mine.yaml")[0] == 0
    assert evaluated["evaluate"][0] == "mine.yaml"
    assert str(evaluated["evaluate"][1]["root"]) == "runs"
    assert "measurements" not in json.loads(bnvuln("evaluate", "model.keras", "--json", "-q")[1])
    assert evaluated["evaluate"][0] == "quick" in catalog.names("suites")


def test_mistakes_in_suites_are_said_before_anything_is_opened(bnvuln, opened):
    for options, fragment in (
        (["--suite", "papr"], "did you mean 'paper'"),
        (["--suite", "absent.yaml"], "absent.yaml: no such file"),
        (["--split", "tset"], "'--split'"),
        (["--limit", "0"], "limit"),
        (["--set", "limits=3"], "did you mean 'limit'"),
    ):
        code, out, err = bnvuln("evaluate", "run", *options)
        assert (code, out) == (2, "")
        assert fragment in err
    assert opened == []

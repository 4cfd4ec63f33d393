"""Transfers of an experiment: each cell's source is the arm that is named, in the same row, of the next seed."""

import shutil

import numpy as np
import pytest
from helpers_records import by_arm, fill, small
from helpers_runs import SMALL, MessageLog

from bn_vuln import config, records
from bn_vuln.config import Attack, Experiment, digest, identity_of
from bn_vuln.config.grid import cell_plans, expand
from bn_vuln.errors import ConfigError
from bn_vuln.experiments import runner
from bn_vuln.reporting.aggregate import aggregate

FGSM = {"attack": "fgsm", "eps": 0.1}


def made(**changes):
    """An experiment on toy nets with transfers from both arms."""
    content = {
        "name": "tiny", "title": "Tiny", "claim": "none", "source": "none",
        "base": {**SMALL, "train": {**SMALL["train"], "epochs": 1}},
        "grid": {"normalization": ["none", "batch"]},
        "seeds": [3, 5],
        "evaluation": {"limit": 40},
        "perturbations": {
            "clean": {"kind": "clean"},
            "white": {"kind": "attack", **FGSM},
            "from_batch": {"kind": "transfer", "source": "batch", "attack": FGSM},
        },
        "table": {"columns": {"clean": "clean", "white": "white box", "from_batch": "from batch"}},
        **changes,
    }  # fmt: skip
    return config.validate(Experiment, content, "tiny.yaml")


def sources(experiment, name="from_batch"):
    """By the arm and seed of a cell, those of its source."""
    cells = expand(experiment)
    known = {digest(identity_of(cell)): (cell.normalization.name, cell.seed) for cell in cells}
    return {
        (cell.normalization.name, cell.seed): known[plans[0].perturbations[name].source]
        for cell, plans in zip(cells, cell_plans(experiment, cells), strict=True)
    }


def test_the_source_has_the_next_seed_and_the_first_after_the_last():
    assert sources(made(seeds=[0, 4, 2])) == {
        (arm, seed): ("batch", following) for arm in ("none", "batch") for seed, following in ((0, 4), (4, 2), (2, 0))
    }


def test_the_source_has_the_same_seed_where_that_is_said():
    same = {"from_batch": {"kind": "transfer", "source": "batch", "seed": "same", "attack": FGSM}}
    found = sources(made(perturbations=same, seeds=[7], table={"columns": {"from_batch": "from batch"}}))
    assert found == {("none", 7): ("batch", 7), ("batch", 7): ("batch", 7)}


def test_the_id_of_a_record_has_the_source_and_not_how_it_was_named():
    experiment = made()
    (plan,) = cell_plans(experiment, cells := expand(experiment))[0]
    found = plan.perturbations["from_batch"]
    assert identity_of(found) == {
        "kind": "transfer", "source": digest(identity_of(cells[-1])), "attack": identity_of(Attack(**FGSM)),
    }  # fmt: skip
    same = {"from_batch": {"kind": "transfer", "source": "batch", "seed": "same", "attack": FGSM}}
    other = made(perturbations={**experiment.model_dump()["perturbations"], **same})
    assert cell_plans(other, cells)[2][0].perturbations["from_batch"] == found  # of none, seed 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, r"tiny: perturbations\.from_batch: seed next: expected two seeds or more, received \[0\]"),
        ({"grid": {"normalization": ["none", "layer"]}, "table": {"treatment": "layer", "columns": {"clean": "clean"}}},
         r"perturbations\.from_batch: source batch: no such arm in the row of .*arms: layer, none"),
    ],
)  # fmt: skip
def test_an_experiment_without_the_source_is_refused_before_anything_is_trained(changes, message):
    with pytest.raises(ConfigError, match=message):
        runner.tasks(made(**changes))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(The experiment, its results folder, what was said); the first cell alone was run before, with its source."""
    root, log = tmp_path_factory.mktemp("transfer"), MessageLog()
    experiment = made()
    runner.run(experiment, root, where={"normalization.name": "none", "seed": 3}, progress=log)
    trained = sorted(path.parent.name for path in root.glob("*/training.json"))
    task, _, _, source = runner.tasks(experiment)
    assert trained == sorted([task.folder(root).name, source.folder(root).name])
    assert not source.finished(root)  # only trained
    runner.run(experiment, root, progress=log)
    return experiment, root, log.lines


def test_every_cell_has_its_transfer_with_the_outcomes_of_both(done):
    experiment, root, _ = done
    results = aggregate(experiment, root)
    runs = {run.cell_id: run for block in results.blocks for run in block.runs}
    for run in runs.values():
        record = run.records["from_batch", ""]
        source = runs[record.perturbation["source"]]
        assert (source.arm, source.cell.seed) == ("batch", {3: 5, 5: 3}[run.cell.seed])
        outcome = {
            name: results.store.correct(one.cell_id, one.records[column, ""].perturbation_id)
            for name, one, column in (("clean", run, "clean"), ("target", run, "from_batch"),
                                      ("source_clean", source, "clean"), ("source", source, "white"))
        }  # fmt: skip
        could = outcome["clean"] & outcome["source_clean"] & ~outcome["source"]
        assert record.source_correct == source.records["white", ""].correct == outcome["source"].sum()
        assert (record.eligible, record.transferred) == (could.sum(), np.sum(could & ~outcome["target"]))


def test_nothing_is_done_twice(done, monkeypatch):
    experiment, root, _ = done
    monkeypatch.setattr("bn_vuln.evaluation.evaluator.measure", lambda *_, **__: pytest.fail("measured again"))
    runner.run(experiment, root)


def test_a_source_that_fails_to_train_ends_the_run_and_its_transfers_are_missing(done, tmp_path):
    experiment, root, _ = done
    root = shutil.copytree(root, tmp_path / "results")
    task, *_, source = runner.tasks(experiment)
    failed = records.read_training(source.folder(root)).model_copy(update={"state": "failed", "reason": "made up"})
    (source.folder(root) / "training.json").write_text(records.to_json(failed))
    for path in task.folder(root).glob("records/*"):
        path.unlink()
    log = MessageLog()
    runner.run(experiment, root, progress=log)
    assert task.finished(root)
    assert {record.kind for record in records.read_records(task.folder(root))} == {"clean", "attack"}
    assert any("failed to train: there is no transfer from it" in line for line in log.lines)
    (block,) = aggregate(experiment, root).blocks
    assert (block.arms["none"]["from_batch"].missing, block.arms["none"]["white"].missing) == (1, 0)


def test_a_transfer_that_beats_the_white_box_attack_is_flagged(tmp_path):
    """Made-up records in which the first examples are the correct ones."""
    content = made().model_dump()
    experiment = small(seeds=[0, 1], perturbations=content["perturbations"],
                       table={"columns": {"white": "white box", "from_batch": "from batch"}}, claims=[])  # fmt: skip
    numbers = {"clean": 0.9, "white": 0.6, "from_batch": 0.5}
    accuracies = {(arm, name): [number] * 2 for arm in ("none", "batch") for name, number in numbers.items()}
    accuracies["batch", "from_batch"] = [0.7, 0.7]
    (block,) = aggregate(experiment, fill(tmp_path, experiment, by_arm(accuracies), n=100)).blocks
    flags = {arm: block.arms[arm]["from_batch"].flags for arm in block.arms}
    assert flags["batch"] == ()
    assert [(flag.check, flag.value) for flag in flags["none"]] == [(6, pytest.approx(10 / 90))]


def test_the_rate_is_a_column_and_the_sign_of_a_difference_of_rates_a_claim(tmp_path):
    columns = ["from_none.transfer_rate", "from_batch.transfer_rate", "more"]
    claims = [
        {"kind": "sign", "sign": sign, "arms": ["none"], "perturbations": ["more"], "source": "x"} for sign in (-1, 1)
    ]
    arms = ("none", "batch")
    changes = {
        "seeds": [0, 1, 2],
        "perturbations": {f"from_{arm}": {"kind": "transfer", "source": arm, "attack": FGSM} for arm in arms},
        "derived": {"more": {"difference": ["from_batch.transfer_rate", "from_none.transfer_rate"]}},
        "table": {"columns": {name: name for name in columns}},
        "claims": claims,
    }
    experiment = small(**changes)
    rates = {
        ("none", "from_none.transfer_rate"): [0.5, 0.5, 0.5],
        ("none", "from_batch.transfer_rate"): [0.3, 0.32, 0.28],
    }
    root = fill(tmp_path, experiment, lambda cell, name: 0.5, n=1000, also=by_arm(rates))
    results = aggregate(experiment, root)
    values = results.blocks[0].arms["none"]
    assert values["more"].by_seed == pytest.approx({0: -0.2, 1: -0.18, 2: -0.22})
    assert [comparison.verdict for comparison in results.comparisons] == ["holds", "fails"]
    with pytest.raises(ConfigError, match=r"expected two arms, or one and derived differences, received from_none"):
        small(**{**changes, "claims": [{**claims[0], "perturbations": columns[:1]}]})


def test_a_source_is_attacked_once_for_all_its_targets(monkeypatch, tmp_path):
    from bn_vuln.evaluation import evaluator

    same = {"from_batch": {"kind": "transfer", "source": "batch", "seed": "same", "attack": FGSM}}
    experiment = made(perturbations=same, seeds=[3], table={"columns": {"from_batch": "from batch"}})
    attacked = []
    original = evaluator.Evaluator._attacked_arrays
    monkeypatch.setattr(
        evaluator.Evaluator, "_attacked_arrays", lambda self, *a: attacked.append(a[0]) or original(self, *a)
    )
    runner.run(experiment, tmp_path)
    assert len(attacked) == 1  # by two targets, of which one is the source itself
    assert list(tmp_path.glob("*/parts")) == []
    results = aggregate(experiment, records.FolderStore(tmp_path))
    assert results.missing == 0
    (block,) = results.blocks
    (white,) = block.arms["batch"]["from_batch"].by_seed.values()
    (other,) = block.arms["none"]["from_batch"].by_seed.values()
    assert white != other

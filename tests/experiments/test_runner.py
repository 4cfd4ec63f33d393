"""Experiments: nothing is done twice, nothing is lost, and a new one is one YAML file."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
import yaml
from helpers_runs import SMALL, MessageLog

from bn_vuln import api, config, records
from bn_vuln.errors import BnvulnError, ConfigError
from bn_vuln.experiments import catalog, runner
from bn_vuln.reporting import aggregate
from bn_vuln.runtime.progress import Quiet
from bn_vuln.training import TrainingResult

BIM = {"kind": "attack", "attack": "bim", "eps": 0.1}


def tiny(tmp_path, **changes):
    """The YAML file of a small experiment."""
    content = {
        "name": "tiny",
        "title": "Tiny",
        "claim": "none",
        "source": "none",
        "base": {**SMALL, "train": {**SMALL["train"], "epochs": 1}},
        "grid": {"normalization": ["none", "batch"]},
        "seeds": [0],
        "evaluation": {"limit": 50},
        "perturbations": {"clean": {"kind": "clean"}, "bim": {**BIM, "steps": 2}},
        "table": {"columns": {"clean": "clean", "bim": "BIM"}},
        "claims": [{"perturbations": ["bim"], "value": -0.4, "sem": 0.01, "source": "made up"}],
        **changes,
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished tiny experiment: (its YAML, its results folder)."""
    folder = tmp_path_factory.mktemp("tiny")
    path = tiny(folder)
    api.reproduce(str(path), root=folder / "results")
    return path, folder / "results"


def no_training(*_, **__):
    raise AssertionError("trained again")


def test_every_cell_gets_its_records(done):
    path, root = done
    todo = runner.tasks(catalog.experiment(str(path)))
    assert len(todo) == 2
    for task in todo:
        folder = task.folder(root)
        assert len(records.read_records(folder)) == 2
        for record in records.read_records(folder):
            assert records.read_correct(folder, record.perturbation_id).sum() == record.correct
        assert not (folder / records.LOCK).exists()


def test_the_resolved_config_is_kept(done):
    path, root = done
    kept = config.validate(config.Experiment, config.read_yaml(root / "experiments" / "tiny-full.yaml"), "kept")
    assert kept == catalog.experiment(str(path))


def test_a_second_run_does_nothing(done, monkeypatch):
    path, root = done
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    monkeypatch.setattr("bn_vuln.evaluation.evaluator.measure", no_training)
    results = api.reproduce(str(path), root=root)
    assert results.cells == 2
    assert results.missing == 0


@pytest.mark.slow
def test_a_new_perturbation_is_measured_on_the_trained_models(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    results = api.reproduce(str(path), root=root, overrides=["perturbations.bim.steps=3"])
    assert all(value.by_seed for block in results.blocks for arm in block.arms.values() for value in arm.values())
    assert len(records.read_records(next(p for p in records.run_folders(root)))) == 3


@pytest.mark.slow
def test_an_eps_without_a_record_is_measured_with_its_grid(done, tmp_path, monkeypatch):
    _, root = done
    root = shutil.copytree(root, tmp_path / "results")
    path = tiny(tmp_path, perturbations={"pgd": {"kind": "attack", "eps": 0.1, "eps_grid": [0.02], "steps": 2}},
                table={"columns": {"pgd 0.02": "PGD .02", "pgd": "PGD .1"}}, claims=[])  # fmt: skip
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    chosen = catalog.experiment(str(path))
    results = api.reproduce(str(path), root=root)
    arms = [arm for block in results.blocks for arm in block.arms.values()]
    assert all(arm["pgd 0.02"].estimate.mean >= arm["pgd"].estimate.mean for arm in arms)
    (task, _) = runner.tasks(chosen)
    assert task.finished(root)
    smaller = config.with_eps_grid(chosen.perturbations)["pgd 0.02"]
    records.record_path(task.folder(root), task._id(task.plans[0], smaller)).unlink()
    assert not task.finished(root)
    assert [list(plan.perturbations) for plan in task.missing(root)] == [["pgd"]]
    api.reproduce(str(path), root=root)
    assert task.finished(root)


def test_a_part_is_run_alone_and_the_rest_later(tmp_path, monkeypatch):
    path, root, trained = tiny(tmp_path, seeds=[0, 1]), tmp_path / "results", []
    real = runner.run_task
    monkeypatch.setattr(runner, "run_task", lambda task, *a, **k: (trained.append(task.cell), real(task, *a, **k)))
    results = api.reproduce(str(path), root=root, where={"normalization.name": "batch"}, seeds=[1])
    assert [(cell.normalization.name, cell.seed) for cell in trained] == [("batch", 1)]
    assert (results.cells, results.missing) == (4, 3)
    assert [c.verdict for c in results.comparisons] == ["not run"]
    kept = config.read_yaml(root / "experiments" / "tiny-full.yaml")
    assert (kept["seeds"], kept["overrides"]) == ([0, 1], [])  # the whole experiment, unchanged
    results = api.reproduce(str(path), root=root, seeds=[1])
    assert [(cell.normalization.name, cell.seed) for cell in trained[1:]] == [("none", 1)]
    assert ([c.ours.n for c in results.comparisons], results.missing) == ([1], 2)
    with pytest.raises(ConfigError, match=r"tiny: no cell has seed 2 \(there are: 0, 1\)"):
        api.reproduce(str(path), root=root, seeds=[1, 2])


@pytest.mark.slow
def test_a_part_is_run_in_processes_too(tmp_path):
    path, root = tiny(tmp_path, seeds=[0, 1, 2]), tmp_path / "results"
    results = api.reproduce(str(path), root=root, seeds=[0, 2], jobs=2)
    assert (results.cells, results.missing) == (6, 2)
    assert {seed for arm in results.blocks[0].arms.values() for seed in arm["bim"].by_seed} == {0, 2}


def test_records_without_models_are_enough_for_a_report(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results", ignore=shutil.ignore_patterns("*.keras"))
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    assert api.reproduce(str(path), root=root).missing == 0


@pytest.mark.parametrize("other", [False, True], ids=["the same weights", "other weights"])
def test_records_of_two_models_never_stand_beside_each_other(done, tmp_path, monkeypatch, other):
    """Records travel without their model, which is trained again for a new one: by another machine's rounding, to
    other weights."""
    path, root = done
    root = shutil.copytree(root, tmp_path / "results", ignore=shutil.ignore_patterns("*.keras"))
    (task, *_) = runner.tasks(catalog.experiment(str(path)))
    folder, retrained = task.folder(root), done[1] / task.folder(root).name
    before = records.read_training(retrained)
    found = before.model_copy(update={"loss": before.loss * (1.001 if other else 1)})
    (lost, *others) = records.read_records(folder)
    records.record_path(folder, lost.perturbation_id).unlink()
    seconds = {record.perturbation_id: record.seconds for record in others}

    def train(*_, **__):
        shutil.copy(retrained / "model.keras", folder)
        return TrainingResult(None, [], found)

    monkeypatch.setattr("bn_vuln.training.train", train)
    runner.run_task(task, root)
    again = {record.perturbation_id: record.seconds for record in records.read_records(folder)}
    assert len(again) == len(others) + 1
    assert [again[key] == value for key, value in seconds.items()] == [not other] * len(others)


def test_an_interrupted_evaluation_continues(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    folder = records.run_folders(root)[0]
    lost = sorted((folder / "records").glob("*.json"))[0]
    kept = lost.read_text()
    lost.unlink()
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    api.reproduce(str(path), root=root)
    assert json.loads(lost.read_text())["correct"] == json.loads(kept)["correct"]


def accuracies(results):
    return [value.by_seed for block in results.blocks for arm in block.arms.values() for value in arm.values()]


@pytest.mark.slow
def test_what_is_damaged_is_measured_again(done, tmp_path, monkeypatch):
    path, root = done
    whole, root = aggregate.aggregate(catalog.experiment(str(path)), root), shutil.copytree(root, tmp_path / "results")
    first, second = records.run_folders(root)
    record, other = sorted((first / "records").iterdir())
    outcomes = second / "outcomes" / f"{other.stem}.npz"
    record.write_text(record.read_text().replace('"accuracy": ', '"accuracy": 1'))
    outcomes.write_bytes(outcomes.read_bytes()[:-30])
    shutil.copy(second / "records" / other.name, other)
    config_text = (first / "config.yaml").read_text()
    shutil.copy(second / "config.yaml", first)
    (second / "config.yaml").unlink()
    (second / "config.yaml").mkdir()
    before = aggregate.aggregate(catalog.experiment(str(path)), root)
    assert sorted(one.path for one in before.damaged) == sorted([record, other, outcomes])
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    log = MessageLog()
    results = api.reproduce(str(path), root=root, progress=log)
    assert accuracies(results) == accuracies(whole)
    assert results.damaged == []
    assert (first / "config.yaml").read_text() == config_text
    kept = [record, other, outcomes, first / "config.yaml", second / "config.yaml"]
    for one in kept:
        assert one.with_name(f"{one.name}.damaged").exists()
        assert any(line.startswith(f"{one}: ") and "made again" in line for line in log.lines)


@pytest.mark.slow
def test_what_is_damaged_of_a_training_is_trained_again(done, tmp_path):
    path, root = done
    whole, root = aggregate.aggregate(catalog.experiment(str(path)), root), shutil.copytree(root, tmp_path / "results")
    first, second = records.run_folders(root)
    shutil.copy(first / "model.keras", second)
    min((second / "records").iterdir()).unlink()
    (first / "training.json").write_text("{}")
    log = MessageLog()
    results = api.reproduce(str(path), root=root, progress=log)
    assert accuracies(results) == [pytest.approx(one, abs=0.021) for one in accuracies(whole)]
    said = "\n".join(log.lines)
    assert f"{second}/model.keras: not the model that training.json is of" in said
    assert f"{first}/training.json: not a readable training record" in said
    assert f"{first}: there was no record of the earlier training; all measurements are redone" in said
    assert [records.open_trained(folder)[1].cell_id for folder in (first, second)] == [first.name, second.name]


def test_a_failed_training_is_counted_and_not_tried_again(tmp_path, monkeypatch):
    path = tiny(tmp_path, base={**SMALL, "train": {"epochs": 1, "batch_size": 50, "lr": 1e30}})
    results = api.reproduce(str(path), root=tmp_path / "results")
    assert results.failed == 2
    assert [c.verdict for c in results.comparisons] == ["failed to train"]
    monkeypatch.setattr("bn_vuln.training.train", no_training)
    assert api.reproduce(str(path), root=tmp_path / "results").failed == 2


@pytest.mark.slow
def test_jobs_run_in_processes_and_give_the_same_accuracies(done, tmp_path):
    path, root = done
    parallel = api.reproduce(str(path), root=tmp_path / "results", jobs=2)
    serial = aggregate.aggregate(catalog.experiment(str(path)), root)
    for first, second in zip(parallel.blocks[0].arms.values(), serial.blocks[0].arms.values(), strict=True):
        for name, value in first.items():
            assert value.estimate.mean == pytest.approx(second[name].estimate.mean, abs=0.021)


def test_a_cell_locked_by_another_host_is_waited_for(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    task = runner.tasks(catalog.experiment(str(path)))[0]
    folder = task.folder(root)
    lost = next((folder / "records").glob("*.json"))
    content = lost.read_text()
    lost.unlink()
    (folder / records.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    waited = []

    def finish_elsewhere(_):
        waited.append(True)
        lost.write_text(content)
        (folder / records.LOCK).unlink()

    monkeypatch.setattr(runner.time, "sleep", finish_elsewhere)
    monkeypatch.setattr("bn_vuln.evaluation.evaluator.measure", no_training)
    assert runner._run_in_worker(task, root).endswith("locked by another process")
    log = MessageLog()
    api.reproduce(str(path), root=root, progress=log)
    assert waited == [True]
    assert [line for line in log.lines if str(folder / records.LOCK) in line]  # or a user would wait for ever


def test_a_cell_that_is_never_finished_is_an_error(tmp_path, monkeypatch):
    path = tiny(tmp_path)
    monkeypatch.setattr(runner, "run_task", lambda *_, **__: None)
    with pytest.raises(BnvulnError, match="2 of 2 cells could not be finished"):
        runner.run(catalog.experiment(str(path)), tmp_path / "results", progress=Quiet())


def test_rounds_that_finish_something_do_not_count(tmp_path, monkeypatch):
    """Where a killed worker takes the others with it, one cell that always dies must not stop all others."""
    path, finished = tiny(tmp_path, seeds=[0, 1, 2, 3]), set()

    def one_a_round(left, *_):
        if len(left) > 1:
            finished.add(left[0].cell)

    monkeypatch.setattr(runner, "_run_round", one_a_round)
    monkeypatch.setattr(runner.Task, "finished", lambda task, _: task.cell in finished)
    with pytest.raises(BnvulnError, match="1 of 8 cells could not be finished"):
        runner.run(catalog.experiment(str(path)), tmp_path / "results", progress=Quiet())


HOLD = """
import sys
from pathlib import Path
from bn_vuln import records
with records.locked(Path(sys.argv[1])) as acquired:
    print(acquired, flush=True)
    sys.stdin.readline()
"""


def test_two_processes_do_not_work_on_one_cell(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        with records.locked(tmp_path) as acquired:
            assert acquired is False
        holder.communicate("\n")
    with records.locked(tmp_path) as acquired:
        assert acquired is True
        assert json.loads((tmp_path / records.LOCK).read_text())["host"] == socket.gethostname()

"""Experiments: nothing is done twice, nothing is lost, and a new one is one YAML file."""

import copy
import errno
import json
import os
import shutil

import pytest
import yaml
from helpers_runs import SMALL, MessageLog

from bn_vuln import api, config, records
from bn_vuln.errors import BnvulnError, ConfigError, UsageError
from bn_vuln.experiments import attempts, catalog, runner
from bn_vuln.experiments.runner import CellsFailedError
from bn_vuln.experiments.task import FINISHED
from bn_vuln.reporting import aggregate
from bn_vuln.runtime import lease
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
        assert not (folder / lease.LOCK).exists()


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


def test_a_cell_that_another_host_works_on_is_waited_for(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    task = runner.tasks(catalog.experiment(str(path)))[0]
    folder = task.folder(root)
    lost = next((folder / "records").glob("*.json"))
    content = lost.read_text()
    lost.unlink()
    (folder / lease.LOCK).write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))  # as older versions wrote
    waited, real = [], runner._Sweep._say_who_works

    def finish_elsewhere(sweep):
        real(sweep)
        waited.append(True)
        lost.write_text(content)
        (folder / lease.LOCK).unlink()

    monkeypatch.setattr(runner._Sweep, "_say_who_works", finish_elsewhere)
    monkeypatch.setattr("bn_vuln.evaluation.evaluator.measure", no_training)
    assert runner._attempt(task, root, strategy="none", progress=None).state == "busy"
    log = MessageLog()
    api.reproduce(str(path), root=root, progress=log)
    assert waited == [True]
    assert [line for line in log.lines if "process 1 on elsewhere" in line and str(folder / lease.LOCK) in line]


def broken(monkeypatch, error, cells=()):
    """Let the training of cells (of all, by default) end with an error; return the cells that were tried."""
    tried, real = [], runner._run_missing

    def attempt(task, root, strategy, progress):
        tried.append(task.cell)
        progress.message("about to break")
        if not cells or task.cell.normalization.name in cells:
            raise copy.copy(error) from None
        return real(task, root, strategy, progress)

    monkeypatch.setattr(runner, "_run_missing", attempt)
    return tried


def test_a_cell_that_fails_again_and_again_is_given_up_and_does_not_stop_the_rest(tmp_path, monkeypatch):
    path, root, log = tiny(tmp_path), tmp_path / "results", MessageLog()
    tried = broken(monkeypatch, RuntimeError("no luck"), ["none"])
    with pytest.raises(CellsFailedError, match=r"tiny: 1 of 2 cells failed, the others are finished\. .*no luck \(see"):
        api.reproduce(str(path), root=root, progress=log)
    assert [cell.normalization.name for cell in tried] == ["none", "batch", "none", "none"]
    assert [line.endswith("; it is tried again") for line in log.lines if "no luck" in line] == [True, True, False]
    failed, finished = runner.tasks(catalog.experiment(str(path)))
    failure = attempts.failure(failed.folder(root))
    assert (failure.attempts, failure.reason) == (3, "RuntimeError: no luck")
    text = "\n".join(failure.log)
    assert text.count("about to break") == 3
    assert text.count("RuntimeError: no luck") == 3
    assert "Traceback" in text
    assert finished.finished(root)
    assert not (finished.folder(root) / attempts.LOG).exists()
    monkeypatch.undo()
    assert api.reproduce(str(path), root=root).missing == 0
    assert not {attempts.LOG, attempts.FAILED, lease.LOCK} & {one.name for one in failed.folder(root).iterdir()}


def test_failures_of_a_cell_that_gets_further_each_time_do_not_add_up(tmp_path, monkeypatch):
    tried, real = [], runner._run_missing

    def attempt(task, root, *others):
        tried.append(task.id)
        if tried.count(task.id) < 6:
            (task.folder(root) / "history.csv").write_text("epoch\n" * tried.count(task.id))
            raise RuntimeError("the host is gone")
        (task.folder(root) / "history.csv").unlink()
        return real(task, root, *others)

    monkeypatch.setattr(runner, "_run_missing", attempt)
    assert api.reproduce(str(tiny(tmp_path)), root=tmp_path / "results").missing == 0
    assert len(tried) == 12


def test_a_cell_that_is_wrong_as_it_stands_is_tried_once(tmp_path, monkeypatch):
    tried = broken(monkeypatch, UsageError("no such thing"))
    with pytest.raises(UsageError, match=r"2 of 2 cells failed.*no such thing"):
        api.reproduce(str(tiny(tmp_path)), root=tmp_path / "results")
    assert len(tried) == 2


def test_what_every_cell_would_meet_stops_at_once(tmp_path, monkeypatch):
    tried = broken(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "/full/disk"))
    with pytest.raises(BnvulnError, match="/full/disk: No space left on device"):
        api.reproduce(str(tiny(tmp_path)), root=tmp_path / "results")
    assert len(tried) == 1


def test_a_cell_whose_lease_is_lost_is_left_to_who_has_it(tmp_path, monkeypatch):
    path, root = tiny(tmp_path), tmp_path / "results"
    waited, real = [], runner._run_missing
    tried = broken(monkeypatch, lease.LeaseLostError("taken over"))

    def settle(sweep, task, outcome):
        waited.append(outcome.state)
        if len(waited) == 2:
            monkeypatch.setattr(runner, "_run_missing", real)
        settle_really(sweep, task, outcome)

    settle_really = runner._Sweep._settle
    monkeypatch.setattr(runner._Sweep, "_settle", settle)
    assert api.reproduce(str(path), root=root).missing == 0
    assert (waited, len(tried)) == (["busy", "busy", "finished", "finished"], 2)


def test_a_cell_that_another_process_has_given_up_meanwhile_is_not_tried_again(tmp_path, monkeypatch):
    path, root = tiny(tmp_path), tmp_path / "results"
    task, _ = runner.tasks(catalog.experiment(str(path)))

    def attempt(one, *_, **__):
        attempts.give_up(one.folder(root), "elsewhere it broke", 3)
        return runner.Outcome("busy", "")

    task.folder(root).mkdir(parents=True)
    attempts.give_up(task.folder(root), "yesterday it broke", 3)  # that of an earlier run is tried again
    monkeypatch.setattr(runner, "_attempt", attempt)
    with pytest.raises(CellsFailedError, match=r"2 of 2 cells failed.*elsewhere it broke"):
        api.reproduce(str(path), root=root)


def test_finished_cells_are_known_without_reading_their_records(done, tmp_path, monkeypatch):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    todo = runner.tasks(catalog.experiment(str(path)))
    api.reproduce(str(path), root=root)
    assert all(task.is_marked(root) for task in todo)
    monkeypatch.setattr(records.FolderStore, "record", no_training)
    assert all(task.finished(root) for task in todo)
    monkeypatch.undo()
    for change in (
        lambda file: file.write_bytes(file.read_bytes()[:-2]),
        lambda file: file.write_bytes(bytes(len(file.read_bytes()))),
        lambda file: file.unlink(),
    ):
        for name in ("training.json", "records/*.json", "outcomes/*.npz"):
            other = shutil.copytree(root, tmp_path / "copy")
            for task in todo:
                assert task.is_marked(other)
            change(next(iter(todo[0].folder(other).glob(name))))
            assert [task.is_marked(other) for task in todo] == [False, True]
            assert [task.finished(other) for task in todo] == [False, True]
            shutil.rmtree(other)
    more = runner.tasks(catalog.experiment(str(path), "full", ["perturbations.bim.steps=3"]))
    assert not any(task.is_marked(root) or task.finished(root) for task in more)


@pytest.mark.parametrize("marked", [True, False], ids=["after it was marked", "before it was marked"])
def test_what_a_process_left_that_was_killed_as_its_cell_was_finished_is_removed(done, tmp_path, marked):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    api.reproduce(str(path), root=root)
    folder = runner.tasks(catalog.experiment(str(path)))[0].folder(root)
    if not marked:
        (folder / FINISHED).unlink()
    dead = {"host": "elsewhere", "machine": lease._machine(), "pid": os.getpid(), "started": 1}
    (folder / lease.LOCK).write_text(json.dumps(dead))
    for name in (attempts.LOG, attempts.FAILED, ".finished.1.0a1b2c3d.json"):
        (folder / name).touch()
    before = {one.name for one in folder.iterdir()}
    api.reproduce(str(path), root=root)
    left = {attempts.LOG, attempts.FAILED, lease.LOCK, ".finished.1.0a1b2c3d.json"}
    assert {one.name for one in folder.iterdir()} == (before - left) | {FINISHED}


def test_a_log_that_cannot_be_written_hides_no_error(tmp_path):
    def attempt(held):
        with attempts.logged(held, Quiet()):
            raise RuntimeError("broken")

    (tmp_path / attempts.LOG).symlink_to("/dev/full")
    with lease.locked(tmp_path) as held, pytest.raises(RuntimeError, match="broken"):
        attempt(held)


def test_a_model_that_was_damaged_and_set_aside_is_made_again(done, tmp_path):
    path, root = done
    root = shutil.copytree(root, tmp_path / "results")
    api.reproduce(str(path), root=root)
    task, other = runner.tasks(catalog.experiment(str(path)))
    for one, name in ((task, "model.keras.damaged"), (other, "elsewhere.keras")):
        (one.folder(root) / "model.keras").rename(one.folder(root) / name)
    assert [one.finished(root) for one in (task, other)] == [False, True]  # published results have no models
    api.reproduce(str(path), root=root)
    assert [(one.folder(root) / "model.keras").exists() for one in (task, other)] == [True, False]
    assert task.is_marked(root)


def test_shards_divide_the_cells(done):
    path, _ = done
    cells = runner.tasks(catalog.experiment(str(path)))
    shards = [config.Sweep(shard=f"{number}/3").cells(cells) for number in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [1, 1, 0]
    assert [task for shard in shards for task in shard] == cells
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ConfigError, match=r"reproduce: shard: expected I/N such as 1/8"):
            api.reproduce(str(path), root="nowhere", shard=wrong)


def test_a_shard_runs_its_cells_alone(tmp_path):
    path, root = tiny(tmp_path), tmp_path / "results"
    assert api.reproduce(str(path), root=root, shard="2/2").missing == 1
    assert [task.finished(root) for task in runner.tasks(catalog.experiment(str(path)))] == [False, True]

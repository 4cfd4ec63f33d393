"""Cells whose trained model is changed: the change by hand, the base, which is trained once, and another training."""

import json

import numpy as np
import pytest
from helpers_runs import MessageLog, interrupt_before, small_cell

from bn_vuln import data, records
from bn_vuln.config import Clean, Evaluation, EvaluationPlan, FineTuning
from bn_vuln.evaluation import classifier
from bn_vuln.experiments.runner import Task, run_task
from bn_vuln.records import DamagedError
from bn_vuln.runtime import lease
from bn_vuln.training import TrainingLoop, cell_id, mended, train
from bn_vuln.training.fine_tuning import fine_tune

TRAIN = {"epochs": 1, "batch_size": 50, "lr": 0.1}
C, CHANGED, RETRAINED = (
    1e-5,
    {"relative_c": 0.5, "reestimate": True},
    {"relative_c": 0.5, "keep_gain": False, "retrain": True},
)


def mended_cell(mend=None, **changes):
    arch = {"name": "mlp", "hidden": [32, 32], "normalized": [0]}
    return small_cell(**{"arch": arch, "normalization": "batch", "train": TRAIN, "mend": mend, **changes})


def examples(name="train", limit=2000):
    return data.load("mnist", name, limit=limit)


def variance_of(model, images):
    """The variances of the inputs of the first BN layer in float64, and the median of those that are not dead."""
    x = (images.reshape(len(images), -1) / 255 - examples().info.mean[0]) / examples().info.std[0]
    kernel = np.array(model.layers[3].kernel, np.float64)
    variance = (x @ kernel).var(axis=0)
    return variance, np.median(variance[variance > 1e-6 * variance.max()])


def batch_norm(model):
    (layer,) = [layer for layer in model.layers if hasattr(layer, "moving_variance")]
    return layer


def equal_weights(a, b):
    return all(np.array_equal(one, other) for one, other in zip(a.get_weights(), b.get_weights(), strict=True))


def test_the_change_is_the_one_made_by_hand():
    base, changed = train(mended_cell()), train(mended_cell(CHANGED))
    variance, m = variance_of(base.model, examples().images)
    layer, before = batch_norm(changed.model), batch_norm(base.model)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-4)
    assert layer.epsilon == pytest.approx(C + 0.5 * m, rel=1e-4)
    np.testing.assert_allclose(layer.gamma, before.gamma * np.sqrt((1.5 * m + C) / (m + C)), rtol=1e-4)
    np.testing.assert_array_equal(layer.beta, before.beta)
    record, validation = changed.record, examples("validation", None)
    logits = changed.model(validation.images / np.float32(255))
    assert record.validation_accuracy == np.mean(np.argmax(logits, 1) == validation.labels)
    assert (record.state, record.epochs, record.best_epoch, changed.history) == ("trained", 0, None, [])


def test_fine_tuning_goes_on_from_the_changed_model(tmp_path):
    options = {"epochs": 2, "lr": 0.01}
    tuned = train(mended_cell({**CHANGED, "finetune": options}), tmp_path / "tuned")
    by_hand = train(mended_cell(CHANGED)).model
    epochs = fine_tune(by_hand, FineTuning(**options), examples(), examples("validation", None))
    assert equal_weights(by_hand, tuned.model)
    assert (tuned.record.epochs, tuned.record.best_epoch, tuned.record.loss) == (2, 2, epochs[-1].loss)
    assert len(records.FolderStore(tmp_path).history("tuned").splitlines()) == 3


def test_training_with_the_changed_c_is_that_of_a_cell_with_this_c():
    base = train(mended_cell()).model
    tracked = np.array(batch_norm(base).moving_variance, np.float64)
    m = np.median(tracked[tracked > 1e-6 * tracked.max()])
    c = C + 0.5 * m
    assert equal_weights(
        train(mended_cell(RETRAINED)).model, train(mended_cell(normalization={"name": "batch", "c": c})).model
    )
    both = {"arch": {"name": "mlp", "hidden": [32, 32], "normalized": [0, 1]}}
    layers = [layer for layer in train(mended_cell(RETRAINED, **both)).model.layers if hasattr(layer, "epsilon")]
    assert layers[0].epsilon != layers[1].epsilon != C  # each has its own


def test_what_is_saved_is_the_changed_model(tmp_path):
    cell = mended_cell(CHANGED)
    changed = train(cell, tmp_path / cell_id(cell))
    opened = classifier.from_run(tmp_path / cell_id(cell))
    pixels = examples(limit=20).images / np.float32(255)
    np.testing.assert_array_equal(opened.predict(pixels), changed.model(pixels))
    assert opened.id == cell_id(cell) != cell_id(cell.base)


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_interruption_between_base_and_change_costs_no_training(tmp_path, monkeypatch):
    cell = mended_cell(CHANGED)
    base, expected = tmp_path / cell_id(cell.base), train(cell).model
    with monkeypatch.context() as patch:
        patch.setattr(mended, "change", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cell, tmp_path / "changed")
    assert records.read_training(base).state == "trained"
    assert not (tmp_path / "changed").exists()
    interrupt_before(monkeypatch, 0)  # no epoch may begin
    assert equal_weights(train(cell, tmp_path / "changed").model, expected)


def test_a_base_in_work_is_waited_for_and_a_damaged_one_refused(tmp_path, monkeypatch):
    cell, log = mended_cell(CHANGED), MessageLog()
    base = tmp_path / cell_id(cell.base)
    base.mkdir()
    lock = base / lease.LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": 0}))
    with monkeypatch.context() as patch:
        patch.setattr(lease.time, "sleep", lambda _: lock.unlink())
        train(cell, tmp_path / "changed", progress=log)
    assert log.lines[0].startswith("waiting for process 1 on elsewhere")
    (base / "model.keras").write_text("damaged")
    with pytest.raises(DamagedError, match="no readable model"):
        train(cell, tmp_path / "again")


@pytest.mark.parametrize("mend", [CHANGED, RETRAINED], ids=["changed", "retrained"])
def test_what_fails_with_its_base_is_recorded(tmp_path, mend):
    cell = mended_cell(mend, train={**TRAIN, "lr": 1e6})
    record = train(cell, tmp_path / "changed").record
    assert record.state == "failed"
    assert record.reason.startswith("what it changes failed to train: ")


def test_a_loss_that_is_not_finite_is_a_failure(tmp_path):
    cell = mended_cell({**CHANGED, "finetune": {"lr": 1e30}})
    record = train(cell, tmp_path / "changed").record
    assert record.state == "failed"
    assert "the loss is not finite" in record.reason


def test_the_runner_trains_a_base_once_and_whole_again_where_its_model_is_damaged(tmp_path, monkeypatch):
    begun, real = [], TrainingLoop.epoch
    monkeypatch.setattr(TrainingLoop, "epoch", lambda self, *a: begun.append(self.cell.mend) or real(self, *a))
    cells = [mended_cell(CHANGED), mended_cell({"relative_c": 0.1}), mended_cell()]
    todo = [Task(cell, (EvaluationPlan(Evaluation(limit=50), {"clean": Clean()}),)) for cell in cells]
    for task in todo:
        run_task(task, tmp_path)
        assert task.finished(tmp_path)
    assert begun == [None]
    (todo[2].folder(tmp_path) / "model.keras").write_text("damaged")
    (todo[0].folder(tmp_path) / "training.json").unlink()
    progress = MessageLog()
    run_task(todo[0], tmp_path, progress=progress)
    assert begun == [None, None]
    assert "it is made again" in progress.lines[0]
    assert all(task.finished(tmp_path) for task in todo)

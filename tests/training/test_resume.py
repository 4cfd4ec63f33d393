"""Exact resume: a training killed in the middle of an epoch ends with the bits of one that was not."""

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import MessageLog, interrupt_before, small_cell

from bn_vuln import records
from bn_vuln.external.loading import load_keras
from bn_vuln.training import TrainingLoop, checkpoint, train

# Trains in its own process, as the command does; with an argument it dies in the middle of epoch 3 (of 4).
WORKER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from helpers_runs import small_cell
from bn_vuln.runtime import backend
from bn_vuln.training import TrainingLoop, train

folder, kill = Path(sys.argv[1]), sys.argv[2]
make = TrainingLoop.__init__
def dying(self, *args, **kwargs):
    make(self, *args, **kwargs)
    steps = self._steps
    self._clock.steps = 7 if kill else 11  # calls of another length must not matter
    self._clock.__class__.__exit__ = lambda *_: None
    def counted(order, rates, begin, end, totals):
        if kill and TrainingLoop.now == 2 and begin >= 14:
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(order, rates, begin, end, totals)
    self._steps = counted
epoch = TrainingLoop.epoch
def numbered(self, number, progress):
    TrainingLoop.now = number
    return epoch(self, number, progress)
TrainingLoop.__init__, TrainingLoop.epoch = dying, numbered
backend.make_deterministic(0)
train(small_cell(**eval(sys.argv[3])), folder, checkpoint_every=1)
"""
CELLS = {
    "sgd": {
        "normalization": "batch",
        "train": {"epochs": 4, "batch_size": 50, "lr": 0.1, "momentum": 0.9, "schedule": "cosine", "warmup": 1.5,
                  "augment": {"pad": 2}},
    },
    "adam": {
        "arch": "vgg8", "normalization": "batch", "data": {"name": "mnist", "limit": 1200, "validation": 50},
        "train": {"epochs": 4, "batch_size": 50, "lr": 1e-3, "optimizer": "adamw", "label_smoothing": 0.1},
        "weight_decay": 0.1,
    },
}  # fmt: skip


def run(folder: Path, cell: str, *, kill: bool = False) -> int:
    """The exit code of a training in a process of its own."""
    code = WORKER.format(tests=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", code, str(folder), "kill" if kill else "", repr(CELLS[cell])]
    return subprocess.run(command, check=False, timeout=300).returncode


def weights_hash(folder: Path) -> str:
    """The sha256 of the model's weights in a run folder."""
    weights = load_keras(folder / "model.keras").get_weights()
    return hashlib.sha256(b"".join(w.tobytes() for w in weights)).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["sgd", "adam"])
def test_a_killed_training_ends_with_the_same_bits(tmp_path, cell):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, cell) == 0
    assert run(killed, cell, kill=True) == -signal.SIGKILL
    assert not (killed / "training.json").exists()
    assert len((killed / "history.csv").read_text().splitlines()) == 3
    assert run(killed, cell) == 0
    assert weights_hash(killed) == weights_hash(whole)
    ended = [records.read_training(folder) for folder in (whole, killed)]
    assert [record.resumed for record in ended] == [0, 1]
    assert all(record.deterministic for record in ended)
    assert ended[0].validation_accuracy == ended[1].validation_accuracy
    losses = [[line.split(",")[3] for line in (f / "history.csv").read_text().splitlines()] for f in (whole, killed)]
    assert losses[0] == losses[1]
    assert not (killed / checkpoint.NAME).exists()


# ---------------------------------------------------------------- checkpoints


def cell(**changes):
    return small_cell(train={"epochs": 3, "batch_size": 50, "lr": 0.1, "momentum": 0.9, **changes})


def interrupted(folder, chosen, before, monkeypatch, **options):
    """Train until the epoch `before` (from 0) begins."""
    with monkeypatch.context() as patch:
        interrupt_before(patch, before)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, folder, **options)


def resumed(folder, chosen, **options):
    """(training outcome, messages) of the training that goes on in a folder."""
    log = MessageLog()
    return train(chosen, folder, progress=log, **options), log.lines


def test_an_interrupted_training_goes_on_after_its_last_epoch(tmp_path, monkeypatch):
    interrupted(tmp_path, cell(), 2, monkeypatch)
    assert not (tmp_path / "model.keras").exists()
    trained, lines = resumed(tmp_path, cell())
    assert lines[0] == f"going on after epoch 2 of 3 (from {tmp_path})"
    assert [epoch.number for epoch in trained.history] == [1, 2, 3]
    assert trained.record.resumed == 1
    assert trained.record.seconds >= sum(epoch.seconds for epoch in trained.history) - 0.01


@pytest.mark.parametrize(("every", "kept"), [(2, 2), *(pytest.param(n, 0, marks=pytest.mark.slow) for n in (10,))])
def test_checkpoints_come_every_so_many_epochs(tmp_path, monkeypatch, every, kept):
    interrupted(tmp_path, cell(epochs=5), 3 if every < 3 else 2, monkeypatch, checkpoint_every=every)
    assert (tmp_path / checkpoint.NAME).exists() == (kept > 0)
    lines = resumed(tmp_path, cell(epochs=5))[1]
    assert lines[0].startswith(f"going on after epoch {kept} " if kept else "epoch 1/5")


@pytest.mark.parametrize(("seconds", "kept"), [(0, 2), (60, 0)])
def test_a_kill_loses_what_is_younger_than_a_minute(tmp_path, monkeypatch, seconds, kept):
    real = TrainingLoop.epoch

    def killed(self, number, progress):
        if number == 2:
            raise SystemExit  # nothing catches it, as nothing catches a kill
        return real(self, number, progress)

    with monkeypatch.context() as patch:
        patch.setattr("bn_vuln.training.run.CHECKPOINT_SECONDS", seconds)
        patch.setattr(TrainingLoop, "epoch", killed)
        with pytest.raises(SystemExit):
            train(cell(), tmp_path)
    assert (tmp_path / checkpoint.NAME).exists() == (kept > 0)
    lines = resumed(tmp_path, cell())[1]
    assert lines[0].startswith(f"going on after epoch {kept} " if kept else "epoch 1/3")


def test_an_interruption_in_the_middle_of_an_epoch_loses_that_epoch_alone(tmp_path, monkeypatch):
    """The steps of the epoch have changed the model; the checkpoint is that of before."""
    real, whole = TrainingLoop.epoch, train(cell()).model.get_weights()

    def interrupted_after_steps(self, number, progress):
        epoch = real(self, number, progress)
        if number == 2:
            raise KeyboardInterrupt
        return epoch

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "epoch", interrupted_after_steps)
        with pytest.raises(KeyboardInterrupt):
            train(cell(), tmp_path)
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    trained, lines = resumed(tmp_path, cell())
    assert lines[0].startswith("going on after epoch 2 ")
    for a, b in zip(trained.model.get_weights(), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_last_epoch_is_always_kept(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bn_vuln.training.run.keep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(cell(), tmp_path, checkpoint_every=10)
    trained, lines = resumed(tmp_path, cell())
    assert lines == [f"going on after epoch 3 of 3 (from {tmp_path})"]
    assert trained.record.epochs == 3
    assert trained.record.best_epoch == 1 + np.argmax([epoch.validation_accuracy for epoch in trained.history])


@pytest.mark.slow
def test_the_best_epoch_before_the_interruption_is_kept(tmp_path, monkeypatch):
    """The weights kept are those of epoch 1 where the later epochs are worse."""
    real = TrainingLoop.epoch

    def spoilt(self, number, progress):
        epoch = real(self, number, progress)
        if number:
            for variable in self.model.trainable_variables:
                variable.assign(np.zeros(variable.shape))
            object.__setattr__(epoch, "validation_accuracy", 0.1)
        return epoch

    one = train(cell(epochs=1)).model.get_weights()
    monkeypatch.setattr(TrainingLoop, "epoch", spoilt)
    interrupted(tmp_path, cell(), 2, monkeypatch)
    trained, _ = resumed(tmp_path, cell())
    assert trained.record.best_epoch == 1
    for a, b in zip(trained.model.get_weights(), one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_no_resume_starts_over(tmp_path, monkeypatch):
    interrupted(tmp_path, cell(), 2, monkeypatch)
    trained, lines = resumed(tmp_path, cell(), resume=False)
    assert lines[0].startswith("epoch 1/3")
    assert trained.record.resumed == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1000]),
        pytest.param(lambda path: np.savez(path, about=np.array("{}")), marks=pytest.mark.slow),
    ],
    ids=["truncated", "empty"],
)
def test_a_damaged_checkpoint_is_named_and_the_training_starts_over(tmp_path, monkeypatch, spoil):
    interrupted(tmp_path, cell(), 2, monkeypatch)
    spoil(tmp_path / checkpoint.NAME)
    trained, lines = resumed(tmp_path, cell())
    for fragment in (checkpoint.NAME, "cannot be read", "starts over"):
        assert fragment in lines[0]
    assert len(trained.history) == 3


def test_the_checkpoint_of_another_config_is_not_used(tmp_path, monkeypatch):
    interrupted(tmp_path, cell(), 2, monkeypatch)
    (tmp_path / "config.yaml").unlink()  # a checkpoint that was copied; with it the folder itself is refused
    lines = resumed(tmp_path, cell(lr=0.2))[1]
    assert "of another config" in lines[0]


def test_a_random_layer_goes_on_with_its_seeds(tmp_path):
    """Dropout draws from a state that is no weight: a checkpoint without it would repeat the first masks."""
    import keras

    def made():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=1), keras.layers.Dense(2)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    x = np.ones((8, 4), np.float32)
    model, optimizer = made()
    model(x, training=True)
    checkpoint.take(model, optimizer, checkpoint.TrainingState([])).save(tmp_path, "id")
    expected = np.array(model(x, training=True))
    other, its_optimizer = made()
    assert checkpoint.restore(checkpoint.read(tmp_path), "id", other, its_optimizer) == checkpoint.TrainingState(
        [], resumed=1
    )
    np.testing.assert_array_equal(np.array(other(x, training=True)), expected)


def test_tensorboard_gets_every_epoch(tmp_path):
    from helpers_attacks import tf

    train(cell(), tmp_path, tensorboard=True)
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    found = {}
    for event in tf.compat.v1.train.summary_iterator(str(file)):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, float(tf.make_ndarray(value.tensor))))
    history = (tmp_path / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[3]) for line in history[1:]]
    assert [step for step, _ in found["loss"]] == [1, 2, 3]
    np.testing.assert_allclose([loss for _, loss in found["loss"]], losses, rtol=1e-6)
    assert set(found) == {"loss", "train_accuracy", "validation_accuracy", "learning_rate", "images_per_second"}


@pytest.mark.slow
def test_a_training_is_deterministic_only_if_all_of_it_was(tmp_path, monkeypatch):
    interrupted(tmp_path, cell(), 2, monkeypatch)
    monkeypatch.setattr("bn_vuln.runtime.backend._options", {"determinism"})
    assert resumed(tmp_path, cell())[0].record.deterministic is False
    assert train(cell(epochs=1)).record.deterministic is True

"""Two replicas (logical CPUs) compute what one device computes."""

import numpy as np
import pytest
from helpers_attacks import tf
from helpers_runs import interrupt_before, small_cell

from bn_vuln import api, records
from bn_vuln.config import Attack, Evaluation
from bn_vuln.errors import UsageError
from bn_vuln.evaluation.classifier import from_run
from bn_vuln.evaluation.evaluator import Evaluator
from bn_vuln.runtime.distribution import ONE_DEVICE, choose
from bn_vuln.training import choose_distribution, train

SYNCHRONIZED = {"name": "batch", "synchronized": True}


@pytest.fixture(scope="module")
def two():
    """Copies on two logical CPUs."""
    return choose("mirrored")


def test_auto_is_one_device_without_gpus(two):
    assert (two.replicas, ONE_DEVICE.replicas) == (2, 1)
    assert choose("mirrored") is two  # one strategy serves the process
    assert choose("auto") is choose("none") is ONE_DEVICE


def test_an_unknown_strategy_is_refused():
    with pytest.raises(UsageError, match=r"auto, none, mirrored or multiworker, received 'all'"):
        choose("all")


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization": "none"},
        {"normalization": SYNCHRONIZED},
        # Without BN: behind it the gradients of constant pixels' kernels are rounding alone, which Adam blows up.
        {"normalization": "none", "weight_decay": 0.1, "train": {"optimizer": "adamw", "lr": 1e-3}},
    ],
    ids=["none", "batch", "adamw"],
)
def test_two_replicas_train_what_one_device_trains(two, changes):
    options = {"epochs": 2, "batch_size": 50, "lr": 0.1, **changes.get("train", {})}
    cell = small_cell(**{**changes, "train": options})
    one, other = train(cell), train(cell, distribution=two)
    for a, b in zip(one.history, other.history, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-5)
        assert b.train_accuracy == pytest.approx(a.train_accuracy, abs=1e-3)
    share = 1e-3 if "optimizer" in options else 1e-5
    for a, b in zip(one.model.get_weights(), other.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=share * np.abs(a).max())
    assert (one.record.replicas, other.record.replicas) == (1, 2)
    assert one.record.global_batch_size == other.record.global_batch_size == 50
    assert other.record.synchronized is (True if changes["normalization"] != "none" else None)


def test_batch_norm_that_is_not_synchronized_is_refused_on_replicas(two):
    with pytest.raises(UsageError, match=r"synchronized: on 2 replicas .* --synchronized, or --strategy none"):
        train(small_cell(normalization="batch"), distribution=two)


def test_a_batch_that_cannot_be_shared_is_refused(two):
    with pytest.raises(UsageError, match=r"multiple of the 2 replicas .* received 25"):
        train(small_cell(train={"batch_size": 25}), distribution=two)


def test_auto_takes_one_device_where_replicas_would_change_the_result(two, monkeypatch):
    monkeypatch.setattr("bn_vuln.training.run.choose", lambda name: two)
    said = []
    progress = type("MessageLog", (), {"message": staticmethod(said.append)})
    assert choose_distribution(small_cell(normalization="batch"), "auto", progress) is ONE_DEVICE
    assert "one device is used" in said[0]
    assert choose_distribution(small_cell(normalization=SYNCHRONIZED), "auto") is two
    assert choose_distribution(small_cell(normalization="batch"), "mirrored") is two  # and train refuses it


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        Attack(attack="pgd", eps=0.1, steps=5),
        Attack(attack="pgd", ord="2", eps=2, steps=5, restarts=2, keep="best_loss"),
    ],
    ids=["inf", "two"],
)
def test_an_attack_on_two_replicas_is_the_same(two, runs, attack):
    found = []
    for devices in (ONE_DEVICE, two):
        with devices.scope():
            subject = from_run(runs["batch"])
        evaluator = Evaluator(subject, Evaluation(limit=77), batch_size=50, distribution=devices)
        found.append(evaluator.run(attack))
    one, other = found
    np.testing.assert_array_equal(other.correct, one.correct)
    assert np.mean(np.abs(other.images - one.images) < 1e-5) > 0.999
    assert one.record.perturbation_id == other.record.perturbation_id
    assert one.record.cell_id == other.record.cell_id
    assert (one.record.replicas, other.record.replicas) == (1, 2)


@pytest.mark.slow
def test_the_api_takes_a_strategy(tmp_path):
    cell = small_cell(normalization=SYNCHRONIZED, train={"epochs": 1, "batch_size": 50, "lr": 0.1})
    assert api.train(cell, tmp_path, strategy="mirrored").record.replicas == 2
    record = api.attack(tmp_path, {"attack": "fgsm", "eps": 0.1}, limit=20, strategy="mirrored").record
    assert record.replicas == 2
    found = api.evaluate(tmp_path, "quick", limit=20, strategy="mirrored")
    assert {r.replicas for r in found.values()} == {2}


@pytest.mark.slow
def test_a_training_on_replicas_goes_on_from_its_checkpoint(two, tmp_path, monkeypatch):
    cell = small_cell(normalization=SYNCHRONIZED, train={"epochs": 3, "batch_size": 50, "lr": 0.1, "momentum": 0.9})
    whole = train(cell, distribution=two)
    monkeypatch.setattr("bn_vuln.training.run.keep", lambda *_: pytest.fail("the end was not to be reached"))
    interrupt_before(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(cell, tmp_path, distribution=two)
    monkeypatch.undo()
    resumed = train(cell, tmp_path, distribution=two)
    for a, b in zip(whole.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
    assert records.read_training(tmp_path).resumed == 1


def test_shares_come_back_in_order(two):
    doubled = two.compile_sharded(lambda x: 2 * x)
    for n in (1, 2, 5):
        np.testing.assert_array_equal(doubled(np.arange(n, dtype=np.float32)), 2 * np.arange(n))


def test_a_constant_lies_on_every_device(two):
    held = two.replicate(np.arange(6, dtype=np.uint8))
    seen = two.compile_sharded(lambda index: tf.gather(held, index))(np.array([5, 0, 3, 1]))
    assert seen.tolist() == [5, 0, 3, 1]
